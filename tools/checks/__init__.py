"""What tools/doctor.py looks at, a section a file; runs on the standard library, whatever else is missing."""
