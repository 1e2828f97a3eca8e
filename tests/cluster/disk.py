"""A disk that can be full."""

from network import run


class Disk:
    """A small file system in memory, which can be full."""

    def __init__(self, folder, size):
        self.folder, self.ballast = folder, folder / "ballast"
        folder.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    def fill(self):
        """Leaves no byte free."""
        with open(self.ballast, "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def empty(self):
        self.ballast.unlink(missing_ok=True)

    def close(self):
        run("umount", "--lazy", str(self.folder))
