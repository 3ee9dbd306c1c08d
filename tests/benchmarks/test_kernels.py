from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks import kernels


def profile(*lines):
    space = xplane_pb2.XSpace()
    plane = space.planes.add(name="/host:CPU")
    for events in lines:
        line = plane.lines.add()
        for name, start, duration in events:
            number = len(plane.event_metadata)
            plane.event_metadata[number].name = name
            line.events.add(metadata_id=number, offset_ps=start * 10**6, duration_ps=duration * 10**6)
    return space


def test_kernels_are_summed_by_kind_over_threads_without_what_runs_around_them():
    one = [("while.2", 0, 100), ("dot.1", 10, 30), ("dot.2", 50, 20), ("CpuExecutable::Execute", 0, 100)]
    other = [("while/body/_1/adam/Sub_3:Sub", 5, 8), ("while/body/_1/a:MatMul", 20, 6), ("BlockUntilReady", 40, 50)]
    assert kernels.kinds(profile(one, other), 2) == [("dot", 25, 1), ("Sub", 4, 0.5), ("MatMul", 3, 0.5)]


def test_the_time_of_a_kernel_within_another_counts_once():
    assert kernels.kinds(profile([("fusion.1", 0, 100), ("dot", 10, 30), ("copy", 15, 5)]), 1) == [
        ("fusion", 70, 1),
        ("dot", 25, 1),
        ("copy", 5, 1),
    ]


def test_rows_tell_shares_and_sum_up_the_rest():
    found = [(f"k{i}", 10.0, 1.0) for i in range(kernels.MOST)] + [("last", 30.0, 2.0), ("least", 50.0, 3.0)]
    rows = kernels.rows(found)
    assert rows[0] == ["k0", "10.0", "1", "5%"]
    assert rows[-1] == ["2 others", "80.0", "5", "40%"]
