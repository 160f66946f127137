"""The `foveate` command: one file per verb.

How a verb registers: `main.py` lists its name; the module `foveate.tools.cli.<verb>` then holds

- `command`: the function, annotated for typer; its docstring is the help text (rich markup, so write `\\[`
  for a literal bracket);
- `EXAMPLES`: `((command line, what it does), ...)`, printed under the help and parsed by the tests.

Rules that keep the surface even:

1. At the top of a verb's module import only the standard library, typer and `foveate.tools.cli.output`;
   everything else inside the function. `foveate --help` must not wait for numpy or torch.
2. With `--json` print exactly one JSON document on stdout (`output.emit`); everything else goes to stderr
   (`output.stderr()`).
3. Raise a `FoveateError` for whatever the user can mend. `main.py` prints it in red without a trace and exits
   with its `exit_code`. Leave with another code by `raise typer.Exit(code)`.
"""
