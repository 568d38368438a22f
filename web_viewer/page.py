"""The page of the viewer, on viser: fields and a camera for each visitor."""

import contextlib
import functools
import html
import io
import math
import random
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import viser

from generators.cameras import FAMILIAR, PoseDistribution, angles_to_nearest, familiar_poses
from generators.trajectories import Camera
from web_viewer import origins, photo_fits, uploads
from web_viewer.pictures import Picture
from web_viewer.request import NARROWEST, SHOWS, WIDEST, Request, distance_of
from web_viewer.session import LABELS, NO_FIT, Session, Shared

Vector = np.ndarray[Any, np.dtype[np.float64]]

NARROW = 600  # pixels; a narrower window is a phone's
MAX_RANDOM_SEED = 2**31
JPEG_QUALITY = 90  # of coarse pictures; finished ones are exact
SAVED = {"picture": "Save picture", "video": "Save orbit video", "mesh": "Save mesh"}
SMALL = "font-size:0.8em;padding:0 1em"
TROUBLE = "color:#fff;background:#c92a2a;padding:6px;margin:0 1em;border-radius:4px"
TEXT = "width:100%;box-sizing:border-box;font:11px monospace;resize:vertical"
# The old clipboard interface: browsers allow the new one only on pages of this machine.
COPY = "this.previousElementSibling.select();document.execCommand('copy');this.textContent='Copied'"
NUM_DOTS = 300  # training cameras that are drawn
FRAME = "width:100%;display:block;border:1px solid #8886;border-radius:4px"
BLUE, GREEN, ORANGE = "#4dabf7", "#20c997", "#fd7e14"
MAP_WIDTH, MAP_HEIGHT = 240, 120  # of 360 degrees of yaw and 180 of pitch


class PoseMap:
    """A small SVG map of the training cameras and the visitor's camera."""

    def __init__(self, distribution: PoseDistribution) -> None:
        self._poses = familiar_poses(distribution)
        self._middle = distribution.yaw_mean
        dots = zip(*(angles[:NUM_DOTS].tolist() for angles in self._poses), strict=True)
        self._dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            for x, y in (self._on_map(pitch, yaw) for pitch, yaw in dots)
        )

    def _on_map(self, pitch: float, yaw: float) -> tuple[float, float]:
        """Return the place on the map: smaller yaw, to the camera's right, is further right."""
        turn = (self._middle - yaw + math.pi) % math.tau  # the middle is half way
        return MAP_WIDTH * turn / math.tau, MAP_HEIGHT * pitch / math.pi

    def is_familiar(self, camera: Camera) -> bool:
        """Return whether a training camera was close to the visitor's."""
        return bool(angles_to_nearest(self._poses, camera.pose()) <= FAMILIAR)

    def svg(self, camera: Camera) -> str:
        """Draw the map with a camera on it, and a line of text below."""
        x, y = self._on_map(camera.pitch, camera.yaw)
        color, words = GREEN, "as in training"
        if not self.is_familiar(camera):
            color, words = ORANGE, "beyond the training cameras"
        pitch, yaw = (f"{math.degrees(angle):.0f}" for angle in (camera.pitch, camera.yaw))
        return (
            f'<div style="padding:0 1em"><svg viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}" '
            f'style="{FRAME}" role="img" aria-label="training cameras and this camera">'
            f'<g fill="{BLUE}" opacity="0.25">{self._dots}</g>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}" stroke="#fff" '
            'stroke-width="1.5"/></svg>'
            f'<div style="font-size:0.8em">pitch {pitch}°, yaw {yaw}°, angle of view '
            f'{camera.fov_degrees:.1f}°: <span style="color:{color}">{words}</span></div></div>'
        )


class _LocalServer(viser.ViserServer):
    """A viser server that never connects to other machines, even for a public address."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Return None and do nothing."""
        return None


class Server:
    """Serves pages until stop is called; every visitor gets a separate session."""

    def __init__(
        self,
        shared: Shared,
        pose_map: PoseMap,
        host: str,
        port: int,
        allowed_origins: Collection[str] = (),
    ) -> None:
        self._shared, self._pose_map = shared, pose_map
        self._pages: dict[int, Page] = {}
        silent = contextlib.redirect_stdout(io.StringIO())  # viser's own greeting
        with silent, origins.guarded(origins.own_names(host), allowed_origins):
            self._viser = _LocalServer(host=host, port=port, verbose=False)
        self.port = self._viser.get_port()
        gui, scene, camera = self._viser.gui, self._viser.scene, self._viser.initial_camera
        gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True)
        gui.set_panel_label("pi-GAN viewer")
        scene.set_up_direction("+y")
        camera.fov = np.radians(shared.usual.fov_degrees)
        camera.look_at, camera.position = _page_camera(shared.start.camera, shared.usual)
        self._viser.on_client_connect(self._came)
        self._viser.on_client_disconnect(self._went)

    def _came(self, client: viser.ClientHandle) -> None:
        page = Page(client, self._shared, self._pose_map)
        self._pages[client.client_id] = page
        if client.client_id not in self._viser.get_clients():  # the visitor has left
            self._went(client)

    def _went(self, client: viser.ClientHandle) -> None:
        page = self._pages.pop(client.client_id, None)
        if page is not None:
            page.session.end()

    def stop(self) -> None:
        """Close all pages and end their sessions."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._viser.stop()
        pages = list(self._pages.values())
        for page in pages:
            page.session.end()
        for page in pages:
            page.session.join()


def _page_camera(camera: Camera, usual: Camera) -> tuple[Vector, Vector]:
    """Return the target and the place of the page's camera that shows the same as camera."""
    place, _ = camera.placed()
    target = np.array(camera.target)
    distance = distance_of(camera, usual.fov_degrees)
    return target, target + distance * (place[0].double().numpy() - target)


class Page:
    """One visitor's fields and picture; the Screen of its session."""

    def __init__(self, client: viser.ClientHandle, shared: Shared, pose_map: PoseMap) -> None:
        self._client, self._shared, self._pose_map = client, shared, pose_map
        self.session = Session(shared, self)
        self._fields: dict[str, Any] = {}
        gui = client.gui
        is_wide = client.camera.image_width >= NARROW  # else the fields would cover the object
        self._trouble = gui.add_html("")
        self._status = gui.add_html("")
        self._bar: Any = gui.add_progress_bar(0.0, visible=False)
        self._bar_text = gui.add_html("")
        with gui.add_folder("Photo", expand_by_default=is_wide):
            self._add_photo()
        with gui.add_folder("Object", expand_by_default=is_wide):
            self._add_object(shared.start)
        with gui.add_folder("Picture", expand_by_default=is_wide):
            self._add_picture(shared.start)
        with gui.add_folder("Camera", expand_by_default=is_wide):
            self._map = gui.add_html(pose_map.svg(shared.start.camera))
            self._button("Back to the middle", lambda: self._place(shared.usual))
        with gui.add_folder("Save", expand_by_default=is_wide):
            self._add_saving()
        self._set_camera_limits()
        client.camera.on_update(lambda _: self._moved())
        self._moved()
        self.session.begin()

    def _field(self, name: str, handle: Any) -> None:
        """Put a field's value into the request whenever it changes."""
        self._fields[name] = handle
        handle.on_update(lambda _: self._filled_in())

    def _button(self, label: str, pressed: Callable[[], None]) -> None:
        self._client.gui.add_button(label).on_click(lambda _: pressed())

    def _add_photo(self) -> None:
        gui = self._client.gui
        shown = gui.add_dropdown("Photo shows", list(photo_fits.CONTENTS))
        self._uploads = uploads.Uploads(gui, self.complain)
        button = gui.add_upload_button("Fit a photo", mime_type=uploads.TYPE)
        button.on_upload(lambda _: self.session.fit(button.value.content, shown.value))
        gui.add_html(uploads.DROPPING)

    def _add_object(self, start: Request) -> None:
        gui, fits = self._client.gui, [NO_FIT, *self._shared.source.fits]
        fit = gui.add_dropdown(
            "Photo's fit", fits, initial_value=start.fit or NO_FIT, visible=len(fits) > 1
        )
        self._field("fit", fit)
        cameras = self._shared.fit_cameras
        fit.on_update(lambda _: self._place(cameras.get(fit.value, self._shared.usual)))
        self._field("seed", gui.add_text(LABELS["seed"], str(start.seed)))
        self._button("Random seed", self._roll)
        self._field("psi", gui.add_slider(LABELS["psi"], 0.0, 1.0, 0.01, start.psi))
        to_seed = "" if start.to_seed is None else str(start.to_seed)
        self._field("to_seed", gui.add_text(LABELS["to_seed"], to_seed))
        self._field("mix", gui.add_slider(LABELS["mix"], 0.0, 1.0, 0.01, start.mix))

    def _add_picture(self, start: Request) -> None:
        gui, source = self._client.gui, self._shared.source
        self._field("show", gui.add_dropdown("Show", SHOWS, initial_value=start.show))
        self._field("image_size", gui.add_text(LABELS["image_size"], str(start.image_size)))
        self._field("num_steps", gui.add_text(LABELS["num_steps"], str(start.num_steps)))
        lock = gui.add_checkbox("Lock view dependence", start.lock_view_dependence)
        self._field("lock_view_dependence", lock)
        names = source.names()
        self._field("checkpoint", gui.add_dropdown("Checkpoint", names, initial_value=names[0]))
        averages = source.averages(start.checkpoint)
        self._field("ema", gui.add_dropdown("Parameters", averages, initial_value=start.ema))

    def _add_saving(self) -> None:
        gui = self._client.gui
        for what, label in SAVED.items():
            self._button(label, functools.partial(self.session.save, what))
        self._command = gui.add_html("")

    def _set_camera_limits(self) -> None:
        usual = self._shared.usual
        camera, nowhere = self._client.camera, usual._replace
        camera.max_orbit_distance = distance_of(nowhere(fov_degrees=WIDEST), usual.fov_degrees)
        camera.min_orbit_distance = distance_of(nowhere(fov_degrees=NARROWEST), usual.fov_degrees)

    def _filled_in(self) -> None:
        self.session.fill_in({name: handle.value for name, handle in self._fields.items()})
        self._tell()

    def _roll(self) -> None:
        self._fields["seed"].value = str(random.randrange(MAX_RANDOM_SEED))

    def _moved(self) -> None:
        camera = self._client.camera
        self.session.move(camera.position.tolist(), camera.look_at.tolist(), float(camera.aspect))
        self._tell()

    def _place(self, camera: Camera) -> None:
        """Make the page's camera show the same as camera."""
        target, place = _page_camera(camera, self._shared.usual)
        with self._client.atomic():
            self._client.camera.position = place  # first, because it also moves the target
            self._client.camera.look_at = target

    def list_checkpoints(self, names: list[str]) -> None:
        """Offer new snapshots in the list of checkpoints."""
        picker = self._fields["checkpoint"]
        if list(picker.options) != names:
            picker.options = names

    def show_fit(self, name: str) -> None:
        """Show a photo's fit, which is new in the list of fits."""
        picker = self._fields["fit"]
        picker.options = [NO_FIT, *self._shared.source.fits]
        picker.visible = True
        picker.value = name

    def _tell(self) -> None:
        """Update the map and the command line."""
        self._map.content = self._pose_map.svg(self.session.request.camera)
        self._command.content = (
            f'<div style="padding:0 1em"><textarea readonly rows="3" style="{TEXT}" '
            f'aria-label="command line">{html.escape(self.session.command_line())}</textarea>'
            f'<button style="width:100%;padding:4px" onclick="{COPY}">Copy the command</button>'
            "</div>"
        )

    def show(self, picture: Picture) -> None:
        """Show a picture as the background of the page."""
        pixels = picture.pixels.permute(1, 2, 0).numpy()
        self._client.scene.set_background_image(
            pixels, "png" if picture.is_finished else "jpeg", jpeg_quality=JPEG_QUALITY
        )
        saved = picture.opened.saved
        height, width, _ = pixels.shape
        self._status.content = (
            f'<div style="{SMALL}">{width} x {height} px in {picture.seconds:.2f} s, '
            f"step {saved.step}{'' if picture.is_finished else ' ...'}</div>"
        )

    def complain(self, text: str) -> None:
        """Show an error in red."""
        box = f'<div data-trouble role="alert" style="{TROUBLE}">{html.escape(text)}</div>'
        self._trouble.content = box if text else ""

    def progress(self, text: str, share: float | None) -> None:
        """Show the progress of saving or fitting."""
        self._bar.visible = share is not None
        self._bar.value = 100 * (share or 0.0)
        self._bar_text.content = f'<div style="{SMALL}">{html.escape(text)}</div>'
