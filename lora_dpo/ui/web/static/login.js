import { $, make, sayRefused, send } from "./common.js";

const password = make("input", { id: "password", type: "password", required: true, autocomplete: "current-password" });
const form = make("form", { class: "card", submit: async (event) => {
  event.preventDefault();
  try {
    await send("api/login", { password: password.value });
    location.reload();
  } catch (error) {
    sayRefused(error);
    password.select();
  }
} }, make("label", {}, "Password, or the token of the address that the terminal shows", password), make("button", { class: "main" }, "Enter"));
$("main").replaceChildren(form);
password.focus();
