"""`python -m attention_zoo`: the command line."""

from attention_zoo.tasks.commands.cli import main

if __name__ == "__main__":
    main()
