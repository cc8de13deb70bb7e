"""Size of what is deployed: the app's own files as `.funcignore` lets them through, and its locked packages.

    python -m tests.benchmarks.package_size

The packages are measured as installed in this environment; in Azure they are installed by the remote build.
"""

import fnmatch
import io
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ignored_names() -> list[str]:
    return [line for line in (ROOT / ".funcignore").read_text().splitlines() if line and not line.startswith("#")]


def deployed_files() -> list[Path]:
    """The app's own files. Every pattern of `.funcignore` names something at the root."""
    patterns = ignored_names()
    top = [path for path in ROOT.iterdir() if not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)]
    files = [file for path in top for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return sorted(file for file in files if "__pycache__" not in file.parts)


def zipped_bytes(files: list[Path]) -> int:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(ROOT))
    return buffer.tell()


def locked_packages() -> list[str]:
    return re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


def installed_bytes(name: str) -> int:
    """Of one package; compiled caches left out."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:  # for another system only
        return 0
    paths = [Path(str(file.locate())) for file in files if "__pycache__" not in file.parts]
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    files = deployed_files()
    sys.stdout.write(f"app       {len(files)} files, {zipped_bytes(files) / 1e6:.2f} MB zipped\n")
    sizes = sorted(((installed_bytes(name), name) for name in locked_packages()), reverse=True)
    sys.stdout.write(f"packages  {len(sizes)}, {sum(size for size, _ in sizes) / 1e6:.0f} MB installed; the largest:\n")
    for size, name in sizes[:8]:
        sys.stdout.write(f"          {name:32} {size / 1e6:6.1f} MB\n")


if __name__ == "__main__":
    main()
