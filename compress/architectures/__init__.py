"""Networks: our own, torchvision's, timm's, or from the user's code."""
