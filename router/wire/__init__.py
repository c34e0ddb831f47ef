"""What goes over the wire: answers, problems, parameters, readings, the document that describes them."""
