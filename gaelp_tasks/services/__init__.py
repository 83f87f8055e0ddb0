"""The rules over what is kept in SQL; they know neither HTTP nor the command line."""
