"""Limit what a visitor can upload, and let a photo be dropped anywhere on the page.

viser keeps all parts of an upload in memory, however many a visitor sends. Its handlers are called
here only for an upload that is small enough.
"""

from collections.abc import Callable

import viser
from viser import _messages as messages
from viser.infra import ClientId

MAX_BYTES = 2**25  # of a photo: 32 MiB
TYPE = "image/*"  # that the browser offers; what the file is is found by decoding it
# Hands a dropped file to viser's own field for uploads. An image's onload is the one script that
# runs in HTML which is added to a page.
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # a GIF
DROPPING = f"""
<img alt="" style="display:none" src="data:image/gif;base64,{PIXEL}"
 onload="if (!window.takesPhotos) {{
  window.takesPhotos = true;
  document.addEventListener('dragover', event => event.preventDefault());
  document.addEventListener('drop', event => {{
    event.preventDefault();
    const field = document.querySelector('input[type=file][accept=\\'{TYPE}\\']');
    if (!field || !event.dataTransfer.files.length) return;
    field.files = event.dataTransfer.files;
    field.dispatchEvent(new Event('change', {{bubbles: true}}));
  }});
}}">
<div style="font-size:0.8em;padding:0 1em">or drop a photo anywhere on this page</div>
"""


class Uploads:
    """Passes a visitor's uploads on to viser, one at a time and none above MAX_BYTES.

    complain is called with a line about an upload that is refused.
    """

    def __init__(self, gui: viser.GuiApi, complain: Callable[[str], None]) -> None:
        self._gui, self._complain = gui, complain
        self._uuid, self._left = "", 0  # of the upload in progress, and the bytes it may still have
        connection, start = gui._websock_interface, messages.FileTransferStartUpload
        connection.unregister_handler(start, gui._handle_file_transfer_start)
        connection.register_handler(start, self.start)
        connection.unregister_handler(messages.FileTransferPart, gui._handle_file_transfer_part)
        connection.register_handler(messages.FileTransferPart, self.part)

    def start(self, client: ClientId, message: messages.FileTransferStartUpload) -> None:
        """Begin an upload, unless it is too large; one that is not finished ends."""
        self._gui._drop_uploads_from_client(client)
        self._uuid = ""
        if message.size_bytes > MAX_BYTES:
            self._complain(f"the photo has {message.size_bytes / 2**20:.0f} MiB, at most "
                           f"{MAX_BYTES / 2**20:.0f} are taken")  # fmt: skip
            done = messages.FileTransferPartAck(
                message.source_component_uuid,
                message.transfer_uuid,
                message.size_bytes,
                message.size_bytes,
            )
            self._gui._websock_interface.queue_message(done)  # or the button would stay disabled
            return
        self._uuid, self._left = message.transfer_uuid, message.size_bytes
        self._gui._handle_file_transfer_start(client, message)

    def part(self, client: ClientId, message: messages.FileTransferPart) -> None:
        """Take a part of the upload in progress, unless it is longer than was said."""
        if message.transfer_uuid != self._uuid:
            return
        self._left -= len(message.content)
        if self._left < 0:
            self._gui._drop_uploads_from_client(client)
            self._uuid = ""
            return
        self._gui._handle_file_transfer_part(client, message)
