"""The command line, one file a command.

A command is a module of this folder, found by its being there, with

    NAME: str                               what the user types
    HELP: str                               one line
    add_arguments(parser) -> None           its arguments, or sub-commands of its own
    run(args) -> int                        does the work, returns the exit status

Modules are imported whenever any command runs, so what is slow to import belongs inside ``run``. What
a command finds goes to stdout, how it is getting on goes to stderr.
"""
