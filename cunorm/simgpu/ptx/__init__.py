"""PTX text as a program: statements, operands, operations in basic blocks."""
