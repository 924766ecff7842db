"""Atomic writing of files: at any time, and after any error, either the old or the new files are complete."""

from vitquant.files.interrupts import recording
from vitquant.files.text import json_text
from vitquant.files.write import require_writable, write_atomically, write_folder

__all__ = ["json_text", "recording", "require_writable", "write_atomically", "write_folder"]
