"""A study with people: judges see a reference, a caption and two pictures, and say which picture is better."""
