"""What must survive outside the broker: tables, migrations, and the units of work on them."""
