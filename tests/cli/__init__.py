"""The commands, as operators and scripts see them: exit statuses, one line of complaint, JSON."""
