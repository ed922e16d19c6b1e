"""The window's two themes, in colours for colour-blind users (after Okabe and Ito)."""

from textual.theme import Theme

DARK = Theme(
    name="pcm-dark",
    dark=True,
    primary="#56b4e9",
    secondary="#8fb8d0",
    accent="#f0e442",
    warning="#e69f00",
    error="#ff8a4c",
    success="#2fbf95",
    foreground="#e6e8ea",
    background="#11151a",
    surface="#181d24",
    panel="#232a33",
    variables={
        "block-cursor-background": "#56b4e9",
        "block-cursor-foreground": "#0b0f14",
        "block-cursor-blurred-background": "#2b4b60",
        "block-cursor-blurred-foreground": "#ffffff",
        "footer-key-foreground": "#f0c75e",
    },
)
LIGHT = Theme(
    name="pcm-light",
    dark=False,
    primary="#00609c",
    secondary="#3c5a6e",
    accent="#7a4c00",
    warning="#8f5a00",
    error="#a83a00",
    success="#006a4b",
    foreground="#14181c",
    background="#fafaf7",
    surface="#f3f3ee",
    panel="#e3e5e4",
    variables={
        "block-cursor-background": "#00609c",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-blurred-background": "#bcd6e6",
        "block-cursor-blurred-foreground": "#14181c",
        "footer-key-foreground": "#7a4c00",
    },
)
