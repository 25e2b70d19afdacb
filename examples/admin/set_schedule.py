#!/usr/bin/env python3
"""Change the schedule of a running run to `adaptive`, and print the decision that follows.

A plain gRPC client of Ballast's admin API: it needs the .proto files and grpcio, nothing of Ballast's.

Install, once, in any Python from 3.10 on:

    python3 -m venv admin-env
    admin-env/bin/pip install grpcio grpcio-tools

Run it from the checkout while a run with `schedule.kind = "interleave"` goes on:

    admin-env/bin/python examples/admin/set_schedule.py --run runs/quickstart-0

`--coordinator HOST:PORT` names the coordinator instead of a run directory.
"""

import argparse
import getpass
import os
import sys
import time
from pathlib import Path

import grpc

PROTO_ROOT = Path(__file__).resolve().parents[2] / "proto"
ANSWER_WAIT_S = 60
POLL_S = 0.5


def main():
    arguments = parse_arguments()
    # Compiles the contract now, which takes grpcio-tools. A program of your own would rather keep what
    # `python -m grpc_tools.protoc` writes.
    sys.path.insert(0, str(PROTO_ROOT))
    messages, services = grpc.protos_and_services("ballast/v1/admin.proto")

    with grpc.insecure_channel(address(arguments)) as channel:
        admin = services.AdminStub(channel)
        try:
            before = admin.Schedule(messages.ScheduleRequest(), timeout=ANSWER_WAIT_S)
            print(f"before: {before.kind}, revision {before.revision}, decided to step {before.decided_step}")
            change(admin, messages, before, arguments)
        except grpc.RpcError as error:
            # INVALID_ARGUMENT names every fault, FAILED_PRECONDITION says that it is too late or that
            # somebody else was first.
            sys.exit(f"{error.code().name}: {error.details()}")


def change(admin, messages, before, arguments):
    """Makes the change, and waits for the first step that is decided under it."""
    request = messages.SetScheduleRequest(
        changes=arguments.change,
        reason=arguments.reason,
        # Refused if somebody changed the settings since we looked.
        revision=before.revision,
    )
    # The audit log of the run names whoever this header names.
    who = (("ballast-user", getpass.getuser()),)
    changed = admin.SetSchedule(request, metadata=who, timeout=ANSWER_WAIT_S)
    print(f"changed: from step {changed.step} on, revision {changed.revision}")

    deadline = time.monotonic() + arguments.wait
    while time.monotonic() < deadline:
        schedule = admin.Schedule(messages.ScheduleRequest(), timeout=ANSWER_WAIT_S)
        after = [one for one in schedule.decisions if one.step >= changed.step and is_step(one)]
        if after:
            first = after[0]
            print(f"after: {schedule.kind}; step {first.step} is an {first.what}: {first.reason}")
            return
        time.sleep(POLL_S)
    sys.exit(f"no step was decided within {arguments.wait} s; is the run paused?")


def is_step(decision):
    """Whether a decision is about one step, rather than about what begins or moves."""
    return decision.what.endswith(" step")


def address(arguments):
    """The coordinator's address: as given, or as the run directory has it."""
    if arguments.coordinator:
        return arguments.coordinator
    file = arguments.run / "coordinator.address"
    try:
        return file.read_text().strip()
    except OSError as error:
        sys.exit(f"{file}: {error.strerror}; start a run with `ballast up`, or give --coordinator HOST:PORT")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--run", type=Path, help="directory of a local run")
    target.add_argument("--coordinator", metavar="HOST:PORT", help="address of the coordinator")
    parser.add_argument("--reason", default="structure slips; more SFT when it does")
    parser.add_argument("--wait", type=float, default=300, help="seconds to wait for the next decision")
    parser.add_argument(
        "change",
        nargs="*",
        default=["kind=adaptive"],
        metavar="KEY=VALUE",
        help="keys of the section [schedule] and their new values (default: kind=adaptive)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
