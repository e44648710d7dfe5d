"""The Hub's names of licences, and the terms of those that are passed on to derived models."""

from __future__ import annotations

from lora_dpo.errors import UserError, did_you_mean

# https://huggingface.co/docs/hub/repositories-licenses, "License identifier"
IDENTIFIERS = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0"),
    *("bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause"),
    *("bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0"),
    *("etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1"),
    *("lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0"),
    *("odc-by", "odbl", "openmdw-1.0", "openmdw-1.1", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa"),
    *("unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "grok2-community", "gemma", "unknown"),
    "other",
)
_LLAMA = (
    "Llama's licence holds for derived models: pass it on, show 'Built with Llama', and begin the model's name with "
    "'Llama'."
)
TERMS = {
    "gemma": (
        "https://ai.google.dev/gemma/terms",
        "Gemma's terms hold for derived models: pass them on, with the use restrictions, and say that it was changed.",
    ),
    **{
        f"llama{version}": (f"https://www.llama.com/llama{version.replace('.', '_')}/license", _LLAMA)
        for version in ("2", "3", "3.1", "3.2", "3.3", "4")
    },
}
"""By the Hub's name: where the text is, and what it asks of whoever publishes a derived model."""


def check_identifier(name: str) -> None:
    """Checks that the Hub knows a licence by this name.

    Args:
        name: What the user says.

    Raises:
        UserError: It does not.
    """
    if name not in IDENTIFIERS:
        raise UserError(
            f"--license (hub.license) {name!r} is no licence that the Hub knows.",
            fix=f"{did_you_mean(name, IDENTIFIERS)} Those without a name there are 'other'.",
        )
