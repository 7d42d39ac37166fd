"""Networks: torchvision's by name, and the ones we define ourselves."""
