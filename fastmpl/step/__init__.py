"""How a method's step is executed, and what that costs."""
