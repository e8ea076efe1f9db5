"""What actually ran: each module here returns facts about it, and none judges them."""
