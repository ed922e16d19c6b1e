"""Login names with more than letters, digits, '-' and '_'."""

ODD_USERS = (
    "ada.lovelace",
    "ada@example.com",
    "EXAMPLE\\ada",
    "ada+test",
    "Ada",
    "żółw",
    "Ада Лавлейс",
    "a=2eb",
    "machine$",
    "é" * 127,
    "x" * 255,
)
