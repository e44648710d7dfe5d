"""What `accelerate launch -m lora_dpo.dpo RECIPE [section.key=value ...]` starts."""

from __future__ import annotations

from collections.abc import Sequence

from lora_dpo.entry import run


def main(argv: Sequence[str] | None = None) -> None:
    """Carries out the DPO stage of a recipe on this process's rank.

    Args:
        argv: The words after the module's name; None takes the process's own.
    """
    run("dpo", argv)


if __name__ == "__main__":
    main()
