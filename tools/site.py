#!/usr/bin/env python3
"""Build the site in _docs/ from the notebooks' committed outputs: with Quarto if it is installed, otherwise with smalldocs."""
import shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def process():
    "What nbdev does before it calls Quarto: notebooks with links and signatures, in _proc/."
    import nbdev.doclinks
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    return proc_nbs(force=True, n_workers=2)

def run(command, *args, cwd): return subprocess.run([Path(sys.executable).with_name(command), *args], cwd=cwd).returncode

def main():
    if shutil.which("quarto"): return run("nbdev_docs", "--n_workers", "2", cwd=ROOT)
    folder, built = process(), ROOT/"_docs"
    if code := run("smalldocs", "render", cwd=folder): return code
    shutil.rmtree(built, ignore_errors=True)
    shutil.move(folder/built.name, built)
    print(f"built {built.name}/index.html")

if __name__ == "__main__": sys.exit(main())
