"""What kibun costs and how exact it is, measured on this machine: `kibun bench`. May import every other room."""
