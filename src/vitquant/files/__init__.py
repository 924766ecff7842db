"""Writing files so that whoever looks, and whatever goes wrong, finds the old ones or the new ones, whole."""

from vitquant.files.interrupts import recording
from vitquant.files.text import json_text
from vitquant.files.write import require_writable, write_atomically, write_folder

__all__ = ["json_text", "recording", "require_writable", "write_atomically", "write_folder"]
