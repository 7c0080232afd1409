"""The view stage: draws each subject again in another scene, with a trained BootPIG or an editing pipeline."""
