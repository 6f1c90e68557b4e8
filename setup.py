"""Builds the extension modules: one for each instruction set of the table below, from one set of sources.

What is not the build of extensions is in pyproject.toml. Environment:

FASTCONV_WERROR=1         compiler warnings are errors (CI)
FASTCONV_SANITIZE=1       AddressSanitizer and UndefinedBehaviorSanitizer
FASTCONV_NO_EXTENSIONS=1  no extension modules, for machines without a compiler: Numba or NumPy is the backend
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


@dataclass(frozen=True)
class Isa:
    """An instruction set: its module's name, the compiler's flags, and so the features a CPU must have to run it.

    The predicate is not written down a second time: it asks for the feature behind each ``-m`` flag.
    """

    name: str
    machines: tuple[str, ...]
    features: tuple[str, ...]
    tuning: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        return [f"-m{feature}" for feature in self.features] + list(self.tuning)

    @property
    def predicate(self) -> str:
        return " && ".join(f'FC_HAS("{feature}")' for feature in self.features)


X86_64 = ("x86_64", "amd64")

#: The widest first: the first one that the CPU can run is used. The baseline is what the compiler targets by itself.
ISAS = (
    Isa("avx512", X86_64, ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma"),
        ("-mprefer-vector-width=512",)),
    Isa("avx2", X86_64, ("avx2", "fma")),
    Isa("baseline", (), ()),
)

MACHINE = platform.machine().lower()
if "_PYTHON_HOST_PLATFORM" in os.environ:  # a cross build names its target there, as in linux-aarch64
    MACHINE = os.environ["_PYTHON_HOST_PLATFORM"].rpartition("-")[2].lower()
built = [isa for isa in ISAS if not isa.machines or MACHINE in isa.machines]

COMMON_FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
                "-fvisibility=hidden"]
WARNING_FLAGS = ["-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter", "-Wno-missing-field-initializers",
                 "-Wno-sign-compare", "-Wno-cast-function-type", "-Wno-unknown-pragmas"]
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g",
                  "-O1"]


class BuildExtensions(build_ext):
    """Adds the flags for OpenMP where the compiler has it, and compiles the modules side by side."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count() or 1

    def build_extensions(self) -> None:
        openmp = self._openmp_flags()
        for extension in self.extensions:
            extension.extra_compile_args += openmp
            extension.extra_link_args += openmp
        super().build_extensions()

    def _openmp_flags(self) -> list[str]:
        """The flags with which a small OpenMP program compiles and links, or none."""
        source = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        for flags in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "probe.c"
                path.write_text(source)
                command = [*self.compiler.compiler_so, str(path), "-o", str(path.with_suffix("")), *flags]
                command = [word for word in command if word not in ("-shared", "-bundle")]
                if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                    return flags
        print("fastconv: this compiler has no OpenMP; the kernels are built for one thread", file=sys.stderr)
        return []


def extensions() -> list[Extension]:
    import numpy
    from Cython.Build import cythonize

    flags = COMMON_FLAGS + WARNING_FLAGS
    links: list[str] = []
    if os.environ.get("FASTCONV_WERROR") == "1":
        flags = [*flags, "-Werror"]
    if os.environ.get("FASTCONV_SANITIZE") == "1":
        flags = flags + SANITIZE_FLAGS
        links = ["-fsanitize=address,undefined"]
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION")]
    table = " ".join(f'FC_ISA("{isa.name}", {isa.predicate})' for isa in built if isa.features)
    folder = "fastconv/native"
    parts = [f"{folder}/{path.name}" for path in sorted((Path(__file__).parent / folder).iterdir())
             if path.suffix in (".h", ".pxi")]
    common = {"extra_link_args": links, "include_dirs": [folder, numpy.get_include()], "depends": parts}
    modules = [Extension("fastconv.native._cpu", [f"{folder}/_cpu.pyx"], extra_compile_args=list(flags),
                         define_macros=[*macros, ("FC_ISA_TABLE", table)], **common)]
    modules += [Extension("fastconv.native._memory", [f"{folder}/_memory.pyx"], extra_compile_args=list(flags),
                          define_macros=macros, **common)]
    modules.append(Extension("fastconv.native._allocations", [f"{folder}/_allocations.pyx"], extra_compile_args=list(flags),
                             define_macros=macros, **common))
    modules += [Extension(f"fastconv.native._{isa.name}", [f"{folder}/_{isa.name}.pyx"],
                          extra_compile_args=flags + isa.flags, define_macros=macros, **common) for isa in built]
    return cythonize(modules, compiler_directives={
        "language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False,
        "binding": False, "freethreading_compatible": True}, build_dir="build/cython", annotate=False)


without_extensions = os.environ.get("FASTCONV_NO_EXTENSIONS") == "1"
setup(ext_modules=[] if without_extensions else extensions(), cmdclass={"build_ext": BuildExtensions})
