"""`python -m lora_dpo` is the same command as `lora-dpo`."""

from lora_dpo.cli import main

if __name__ == "__main__":
    main()
