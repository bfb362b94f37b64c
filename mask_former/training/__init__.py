"""What mask_former/trainer.py is built from: the step, its log, checkpoints, the run folder."""
