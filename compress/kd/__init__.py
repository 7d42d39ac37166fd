"""Knowledge distillation: teachers, losses, stored logits; used by every stage that trains."""
