"""Settings of the whole suite: eight host devices, strict promotion, quick compilation, a key per test."""

import os
import platform
import zlib

_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):  # read once, when JAX first looks for devices
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
# Most programs are compiled to run once. CI compiles with all optimizations on the newest JAX line.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

from helpers import FULL  # noqa: E402


def pytest_configure(config):
    """Keep compiled programs between runs; with JAXPROP_FULL=1 run the slow tests too.

    The cache is pytest's own, so `pytest --cache-clear` empties it. Programs compiled for another processor do
    not run on this one: each machine has its own folder.
    """
    if FULL:
        config.option.markexpr = ""
    cache = getattr(config, "cache", None)  # none with `-p no:cacheprovider`
    if cache is None:
        return
    folder = cache.mkdir(f"compiled-{jax.__version__}-{platform.node()}")
    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2` each worker takes a half in order, so that the tests of one model share what they compile."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


@pytest.fixture(autouse=True)
def strict(request):
    """Silent upcasting and broadcasting are errors, except in tests marked `library`."""
    if request.node.get_closest_marker("library"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def key(request):
    """A random key of the test's own: the same in every run, another in every test."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield
