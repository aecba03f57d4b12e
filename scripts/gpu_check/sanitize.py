"""Runs a program under a tool of compute-sanitizer.

    sanitize.py TOOL PROGRAM ARGUMENT...

Exits with 77 where there is no compute-sanitizer, or it does not know the device.
"""

import subprocess
import sys

import machine

ERRORS = 9  # what the sanitizer exits with when it found some


def main():
    name, *program = sys.argv[1:]
    sanitizer = machine.tool("compute-sanitizer")
    if sanitizer is None:
        print("there is no compute-sanitizer here")
        sys.exit(77)
    done = subprocess.run([sanitizer, "--tool", name, "--error-exitcode", str(ERRORS), *program], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout)
    if "Device not supported" in done.stdout:
        print("compute-sanitizer does not support this device")
        sys.exit(77)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
