"""What changed between the teacher's file and the shipped one, measured on the test images."""
