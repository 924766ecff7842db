"""What several tests share: makers of models, programs and spoiled files, and an executor of their own."""
