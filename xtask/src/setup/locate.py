"""Prints where pip would fetch wheels from, without fetching them.

Each argument is package,python,platform,file; each line of the answer is the file's URL, or `-` if
the index offers the package but not that file, or `?` if it offers nothing (it may be unreachable).

Asking pip itself keeps everything a person has set for it: mirrors, proxies, certificates, folders
of wheels. (`pip install --dry-run --report` would download the wheels once only to name them.)
"""

import logging
import sys

try:
    import pip
except ImportError:
    sys.exit("No module named pip")

try:
    from pip._internal.cli.cmdoptions import make_target_python
    from pip._internal.commands import create_command
except ImportError as missing:
    sys.exit(f"unsupported pip {pip.__version__}: {missing}")


def locate(package, python, platform, file):
    command = create_command("download")
    options, _ = command.parse_args(
        ["--no-deps", "--only-binary=:all:", "--retries=2", "--platform", platform]
        + ["--python-version", python, package]
    )
    with command.main_context():
        session = command.get_default_session(options)
        target = make_target_python(options)
        finder = command._build_package_finder(options, session, target_python=target)
        links = [candidate.link for candidate in finder.find_all_candidates(package)]
    urls = [link.url_without_fragment for link in links if link.filename == file]
    return urls[0] if urls else "-" if links else "?"


logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
for argument in sys.argv[1:]:
    try:
        print(locate(*argument.split(",")))
    except (AttributeError, TypeError) as changed:
        sys.exit(f"unsupported pip {pip.__version__}: {changed}")
