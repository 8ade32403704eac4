"""Where the European XFEL keeps the runs of a proposal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from spidask.errors import ConfigError

INSTALL = "pip install 'spidask[euxfel]'"


def find_proposal_runs(proposal: int | str, runs: Sequence[int], data: str) -> list[str]:
    """Find the folders of runs with extra-data's own finder.

    Parameters
    ----------
    proposal : int or str
        Number of the proposal, such as 2012 or ``p002012``, or its folder.
    runs : sequence of int
        Numbers of the runs.
    data : str
        Folder of the proposal that holds the runs: ``raw`` or ``proc``.

    Returns
    -------
    list of str
        A folder for each run, in the order given; whether it is there is not looked at.

    Raises
    ------
    ConfigError
        If extra-data is not installed or does not find the proposal.
    """
    try:
        from extra_data.read_machinery import data_root_dir, find_proposal
    except ImportError as error:
        raise ConfigError(
            f"euxfel.proposal: proposals are found by extra-data ({error}); {INSTALL}, or name the "
            "run folders in runs.files"
        ) from None
    text = str(proposal)
    try:
        folder = find_proposal(int(text) if text.isdecimal() else text)
    except Exception:  # extra-data raises no more special one
        raise ConfigError(
            f"euxfel.proposal: {proposal} is not found in {data_root_dir()}; correct it, give the "
            "proposal's folder, or name the run folders in runs.files",
            proposal=proposal,
        ) from None
    return [os.path.join(folder, data, f"r{run:04d}") for run in runs]
