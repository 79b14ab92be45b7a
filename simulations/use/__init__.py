"""A trained model in use: opened, shown pictures, measured on other data, written in other formats."""
