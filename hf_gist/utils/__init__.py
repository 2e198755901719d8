"""Files and terminal output; nothing here knows about models or data."""
