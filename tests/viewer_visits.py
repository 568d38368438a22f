"""Visitors of the viewer without a browser: shared helpers of its tests."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from conftest import TINY

from config import curriculum
from generators.trajectories import Camera
from web_viewer.checkpoints import Checkpoints
from web_viewer.request import Request
from web_viewer.session import Session, Shared

POSES = curriculum.build("Tiny", TINY).poses()
EYE = Camera(1.3, 1.1, 12.0)


def source_of(run, **changes):
    return Checkpoints(
        run / "generator.pth", device=torch.device("cpu"), curriculum=None, **changes
    )


def request_of(**changes):
    wanted = {"checkpoint": "generator.pth", "ema": "ema", "camera": EYE, "num_steps": 4}
    return Request(**{**wanted, "image_size": 8, **changes})


class Screen:
    """Records the output to a visitor's browser."""

    def __init__(self):
        self.pictures, self.troubles, self.steps, self.names, self.fits = [], [], [], [], []
        self.saved = threading.Event()

    def show(self, picture):
        self.pictures.append(picture)

    def complain(self, text):
        self.troubles.append(text)

    def progress(self, text, share):
        self.steps.append((text, share))
        if share is None:
            self.saved.set()

    def list_checkpoints(self, names):
        self.names = names

    def show_fit(self, name):
        self.fits.append(name)


def shared_of(run, output_dir, **changes):
    return Shared(
        source=source_of(run),
        start=request_of(image_size=80),
        usual=EYE,
        fit_cameras={},
        output_dir=output_dir,
        options=["--output_dir", str(output_dir)],
        saver=ThreadPoolExecutor(1),
        **changes,
    )


def come(shared):
    """Return a session whose thread is not started, and its screen."""
    screen = Screen()
    return Session(shared, screen), screen


def run_out(session):
    """Render in this thread until no request is left."""
    while session.is_wanted:
        session.render()
