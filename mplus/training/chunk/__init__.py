"""Training for the default layout: the projection that recall scores with, and the read adapter."""
