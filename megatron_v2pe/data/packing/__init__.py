"""Putting documents into packs under two budgets, and dealing packs out to ranks."""
