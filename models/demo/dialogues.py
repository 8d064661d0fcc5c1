"""Two dialogues in the manner of the demo pair's training data: for where the data are not at hand."""

from __future__ import annotations

from models.demo.data import Message

DIALOGUES: list[list[Message]] = [
    [
        {"role": "user", "content": "I need to find a place to eat. I would like something in Oakland."},
        {"role": "assistant", "content": "What kind of food would you like to eat?"},
        {"role": "user", "content": "I am thinking of Chinese food, and it should not be expensive."},
        {"role": "assistant", "content": "How about Bay Fung Tong? It is a nice restaurant in Oakland."},
        {"role": "user", "content": "That sounds good. Can you book a table for two at half past six in the evening?"},
        {
            "role": "assistant",
            "content": "Please confirm: a table for 2 people at Bay Fung Tong in Oakland at 6:30 pm.",
        },
        {"role": "user", "content": "Yes, thank you."},
        {"role": "assistant", "content": "Your reservation has been made. Is there anything else I can help you with?"},
    ],
    [
        {"role": "user", "content": "Will it rain in San Francisco on the 8th of this month?"},
        {
            "role": "assistant",
            "content": "There is a 24 percent chance of rain and the average temperature is 79 degrees.",
        },
        {"role": "user", "content": "Great. I want to see a movie there. Which ones are playing?"},
        {"role": "assistant", "content": "I found 10 movies for you. How about Breakthrough, Captain Marvel or Dumbo?"},
        {"role": "user", "content": "No, thanks. That is all for today."},
        {"role": "assistant", "content": "Have a great day!"},
    ],
]
