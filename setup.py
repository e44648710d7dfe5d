"""Adds the top-level folders of configuration to the package; all other metadata is in setup.cfg.

In a wheel `recipes/` becomes `lora_dpo/_resources/recipes/`, and so on. `lora_dpo.resources` looks there first and
beside the package second, where a checkout and an editable install have them.
"""

from pathlib import Path

from setuptools import find_packages, setup

# The same names as lora_dpo.resources.FOLDERS (tests/packaging compares them): building must not import the package.
FOLDERS = {
    f"lora_dpo._resources.{name}": name
    for name in ("recipes", "accelerate_configs", "ds_configs", "slurm")
    if Path(__file__).with_name(name).is_dir()
}

setup(
    packages=[*find_packages(include=["lora_dpo", "lora_dpo.*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={
        "": ["py.typed", "*.csv", "*.j2", "*.jinja", "*.html", "*.txt"],
        "lora_dpo.ui.web": ["static/*"],
        **dict.fromkeys(FOLDERS, ["**/*"]),
    },
)
