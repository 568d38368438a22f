"""The interactive viewer: its page, its sessions and the pictures it shows."""
