"""What every command is made of: arguments, one run, exit statuses, what is written and how."""
