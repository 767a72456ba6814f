"""A round of a star, and when it is over."""

import torch

from fedsim.transport.shares import Round


def test_a_round_whose_answers_have_all_come_waits_for_nothing(net, eventually, monkeypatch):
    """Also where several have come at once, and at a node that does not train itself, as a scheduler."""
    simulation = net.simulation(net.star)
    net.expected = 2
    star = net.stars[0]
    star.own = None
    for _ in range(2):
        net.worker(star.address)
    listen, together = Round._next, []

    def hear(round, seconds):
        assert round.running or not seconds, "it waits for an answer to nothing"
        if seconds and len(round.running) == 2:
            eventually(lambda: star.events.qsize() == 2)
            together.append(round)
        listen(round, seconds)

    monkeypatch.setattr(Round, "_next", hear)
    assert torch.equal(net.run(simulation), net.reference())
    assert len(together) == 4
