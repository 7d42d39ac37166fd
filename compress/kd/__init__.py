"""Knowledge distillation, shared by all stages that train with a teacher."""
