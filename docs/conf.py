"""Makes a site of the pages and the docstrings: ``python -m sphinx -W docs docs/_build``."""

import re

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import cunorm
import cunorm.simgpu
import cunorm.torch

project = "cunorm"
author = "The cunorm authors"
release = cunorm.__version__
extensions = ["myst_parser", "numpydoc"]
exclude_patterns = ["_build"]

default_role = "py:obj"  # of a name in single backticks, in docstrings
highlight_language = "none"  # of blocks that name none: what a snippet prints
myst_heading_anchors = 3  # as deep as a link leads; named as GitHub names them
numpydoc_show_class_members = False
autodoc_typehints = "none"  # numpydoc's sections have the types

html_theme = "alabaster"
html_theme_options = {
    "description": "RMSNorm and LayerNorm for CuPy",
    "extra_nav_links": {"Source": "https://github.com/cunorm/cunorm"},
    "body_max_width": "none",
    "page_width": "1200px",
}
html_show_copyright = False  # LICENSE has it
html_static_path = ["_static"]
html_css_files = ["tables.css"]

FILES = "https://github.com/cunorm/cunorm/blob/main/"
OUTSIDE = re.compile(r"(?<!!)(\[[^][]+\])\(\.\./([^)]+)\)")  # a link, and not an image


def lead_to_github(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to files outside docs/, which the site does not have, to GitHub's."""
    source[0] = OUTSIDE.sub(rf"\1({FILES}\2)", source[0])


def without_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Drop the docstring of a module: its page says what it is."""
    if what == "module":
        lines.clear()


def warn_of_what_is_missing(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that has no entry, as those that need CuPy where there is none."""
    entries = env.domains.python_domain.objects
    for module in (cunorm, cunorm.torch, cunorm.simgpu):
        for name in module.__all__:
            if f"{module.__name__}.{name}" not in entries:
                logging.getLogger(__name__).warning("no entry for %s.%s", module.__name__, name)


def setup(app: Sphinx) -> None:
    """Tell Sphinx what is changed on the way."""
    app.connect("source-read", lead_to_github)
    app.connect("autodoc-process-docstring", without_docstring)
    app.connect("env-check-consistency", warn_of_what_is_missing)
