"""What a person may ask for: a copy of all data of the account, and their deletion."""
