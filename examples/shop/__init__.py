"""A shop whose orders are a saga: reserve the stock, charge the card, confirm, tell the ERP; or undo what was done."""
