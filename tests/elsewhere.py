"""The tests that do not apply on Windows or macOS, by name, with the reason of each."""

import sys

LINUX_ONLY = {
    "test_keeping.py::test_one_run_holds_a_folder_and_leaves_nothing_after_an_error[msvcrt]":
        "simulates the locks of Windows with /proc",
    "test_keeping.py::test_a_lock_is_waited_for[msvcrt]": "simulates the locks of Windows",
    "test_machine.py::test_fast_keeps_float32_where_bfloat16_is_slow":
        "limits oneDNN and ATen of builds for Linux",
    "test_two_machines.py": "needs network namespaces",
}  # fmt: skip
NOT_ON_WINDOWS = {
    "test_bad_data.py": "makes links and pipes",
    "test_datasets.py::test_a_list_of_them_that_cannot_be_written": "limits the size of files",
    "test_disk.py": "mounts a small disk",
    "test_disk_commands.py": "mounts a small disk and limits the size of files",
    "test_distributed.py::TestSignals": "sends signals to other processes",
    "test_distributed.py::TestStopSignal": "raises SIGHUP and SIGUSR1",
    "test_distributed.py::TestTwoProcesses::test_one_failure_ends_the_run[killed": "sends SIGKILL",
    "test_distributed.py::TestTwoProcesses::test_slow_ranks": "expects the end by a signal",
    "test_image_cache.py::test_a_process_that_is_killed": "sends SIGKILL",
    "test_image_cache.py::test_without_locks": "takes away flock",
    "test_image_files.py::test_files_that_are_no_pictures": "makes a pipe",
    "test_image_files.py::test_links": "makes links, for which Windows asks an administrator",
    "test_keeping.py::test_a_lock_file_that_is_replaced": "no open file is removed there",
    "test_kills.py": "kills groups of processes",
    "test_many_processes.py": "kills groups of processes",
    "test_memory.py::test_the_estimate_on_the_cpu": "measures memory by the module resource",
    "test_train.py::test_a_signal_saves": "sends signals to another process",
    "test_viewer_session.py::test_the_picker_lists": "makes a link",
    "test_windows.py": "simulates Windows",
}


def reason_to_skip(test, platform=sys.platform):
    """Return why a test, as "FILE.py::NAME", does not apply on a platform; None if it does."""
    tables = {"linux": [], "win32": [LINUX_ONLY, NOT_ON_WINDOWS]}.get(platform, [LINUX_ONLY])
    found = [why for table in tables for name, why in table.items() if test.startswith(name)]
    return f"{platform}: {found[0]}" if found else None
